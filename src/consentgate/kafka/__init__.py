"""The only package that speaks to Kafka."""
