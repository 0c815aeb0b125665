"""The way to the browser and back: routes, live messages, the installed pack."""
