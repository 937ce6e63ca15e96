-- Run once by the image of PostgreSQL, when its volume is fresh.
CREATE DATABASE dagster;
CREATE DATABASE mlflow;
