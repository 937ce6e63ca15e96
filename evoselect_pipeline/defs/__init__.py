"""What Dagster loads: one folder per evolution line, and the resources they share."""
