"""The tasks, one module each; `config.task` selects one."""
