"""Training an encoder: recipe -> pairs -> objective -> checkpoint."""
