"""What touches a running ``torch.nn.Module``: forwards, hooks, norms of layers. Whoever looks leaves no trace."""
