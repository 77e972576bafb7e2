"""ReFrame on any cluster behind FirecREST: importing this package registers the scheduler `firecrest`.

In the site configuration:

    import hpcbridge_reframe

    site_configuration = {"systems": [{"partitions": [{"scheduler": "firecrest", "sched_options": {...}, ...}]}]}

The options are described in `hpcbridge_reframe.options`.
"""

from hpcbridge_reframe.scheduler import FirecrestScheduler

__all__ = ["FirecrestScheduler"]
