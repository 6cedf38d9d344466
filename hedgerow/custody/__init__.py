"""Looking after what is durable: backups of a tier's folder, putting them back, and the audit of a fleet."""
