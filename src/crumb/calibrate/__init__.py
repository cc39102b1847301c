"""Token windows to statistics of each layer's inputs."""
