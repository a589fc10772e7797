"""One cluster for all tests; a bucket, and the environment by which clients find it."""

import os

import pytest
from cluster import Cluster


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("cluster")) as running:
        running.make_bucket("crops")
        yield running


@pytest.fixture
def environment(cluster, monkeypatch):
    """What a client of the cluster has in its environment; no other credentials are looked for."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {**cluster.environment, "AWS_EC2_METADATA_DISABLED": "true", "NO_PROXY": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    return cluster.environment
