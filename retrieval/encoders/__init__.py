"""Text -> arrays: bags of words, latent semantic analysis, sentence-transformers models, cross-encoders."""
