"""Connection to the front end: routes, live messages, the installed pack."""
