"""The world: ports, driver, MQTT, HTTP, storage and tinygrad."""
