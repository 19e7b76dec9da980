"""How a command talks: flags, configuration files, exit statuses."""
