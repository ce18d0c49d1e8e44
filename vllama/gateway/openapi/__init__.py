"""OpenAPI description of all routes: records as pydantic models, operations, and the document that they make.

Imported only when a client asks for the document. Requests are still read by `vllama.ollama`, not by these models.
"""
