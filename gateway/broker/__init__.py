"""The broker: what it knows (tables), what it answers (handlers), and the services that run beside them."""
