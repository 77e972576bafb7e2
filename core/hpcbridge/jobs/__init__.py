"""Jobs: submit once, watch, logs. Nothing is loaded here: import the names from the modules."""
