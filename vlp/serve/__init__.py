"""Search and zero-shot classification over HTTP, and the page that people look at."""

from vlp.errors import needs

with needs("serve", "The service takes FastAPI, uvicorn and prometheus-client"):
    import fastapi as fastapi
    import prometheus_client as prometheus_client
    import uvicorn as uvicorn
