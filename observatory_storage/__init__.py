"""The PostgreSQL store for LLM telemetry."""

__version__ = "0.1.0"
