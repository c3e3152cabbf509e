"""What people use beside the service: an embedded broker, fixtures, replay, the demo."""
