"""An embedded FirecREST v2 backend for one machine."""
