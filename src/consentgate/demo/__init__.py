"""The demo: the main job on an embedded Kafka, and a stop that can be seen happening."""
