"""One command each: `config.task` names it."""
