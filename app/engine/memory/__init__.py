"""Memory and knowledge of crews: stored by the service, and never blocking the event loop."""
