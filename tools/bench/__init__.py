"""graphc beside the engines that a user would pick instead: `graphc bench`."""
