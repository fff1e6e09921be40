"""What the server keeps from round to round, and what it asks of the clients in one."""
