"""Moving messages: links, channels as hops, the router, sessions."""
