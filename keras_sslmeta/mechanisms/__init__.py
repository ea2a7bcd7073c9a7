"""Private mechanisms, each written once as pure functions on tensors and variables."""
