"""The HTTP server around a recommender: lists, scores, items and an OpenAI-compatible chat.

`app.create_app` makes the FastAPI app, `engine.EngineLoop` is the one thread that uses the model. Needs the extra
``serve``; nothing here is imported by ``import llmrec``.
"""
