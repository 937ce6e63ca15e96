"""State on disk: the home folder, published artifacts, LanceDB tables and MLflow tracking."""
