"""Search and zero-shot classification over HTTP, and the page that people look at."""
