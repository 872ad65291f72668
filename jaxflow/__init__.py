"""HybridFlow in JAX: reinforcement learning of large language models on named device meshes."""
