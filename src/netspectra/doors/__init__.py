"""Where sources, live models and verbs meet: each door opens what the user named and hands it to one verb."""
