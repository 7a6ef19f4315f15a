# SPDX-License-Identifier: Apache-2.0
"""The fixtures of tests/cluster, for the groups."""
import importlib.util
import pathlib

import pytest

_spec = importlib.util.spec_from_file_location(
    "cluster_conftest", pathlib.Path(__file__).resolve().parents[1] / "cluster" / "conftest.py")
_cluster = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_cluster)
api_key, base_url, client, kube, namespace = (
    _cluster.api_key, _cluster.base_url, _cluster.client, _cluster.kube, _cluster.namespace)
# Of the same module everywhere.
globals().update({name: getattr(_cluster, name)
                  for name in ("NAMESPACE", "ROOT", "condition", "eventually", "is_ready", "model")})


@pytest.fixture(scope="session")
def rempart(kube):
    return _cluster.install(kube, pathlib.Path(__file__).with_name("values.yaml"))
