"""A folder for PYTHONPATH: every Python below ``paddle-freeze run`` reads it as it starts."""
