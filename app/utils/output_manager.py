"""The operations guide's entry to cleaning up by hand."""

from app.commands import cleanup_old_temp_files

__all__ = ["cleanup_old_temp_files"]
