"""The networks: transformer with rolling cache, track head, autoencoder, text encoder, motion prior."""
