"""Training of the embedded student: free-licence pictures, scenes, losses and the training loop."""
