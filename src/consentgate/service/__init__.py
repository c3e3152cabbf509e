"""The running process: tasks, health, metrics and logs."""
