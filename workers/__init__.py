"""The bridge between the service and `ml`: it knows both and holds no ideas of its own."""
