"""What admins reach by HTTP: every route here asks who they are first."""
