"""The Debian 12 packages that octavo-tiny learns from, with the licence of their documentation.

Permissive licences only. Left out of each: change logs, indexes and generated reference tables.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Source:
    """One Debian package; `only` and `skip` are regular expressions on the path in it."""

    package: str
    licence: str
    only: str = ""
    skip: str = ""


SOURCES: tuple[Source, ...] = (
    Source("python3.11-doc", "PSF-2.0", skip=r"/whatsnew/changelog"),
    Source("postgresql-doc-15", "PostgreSQL", skip=r"/release-"),
    Source("sqlite3-doc", "public domain", skip=r"/(releaselog|session|syntax|c3ref)/"),
    Source("python-django-doc", "BSD-3-Clause", skip=r"/releases/"),
    Source(
        "rust-doc",
        "MIT or Apache-2.0",
        only=r"/html/(book|reference|nomicon|rust-by-example|cargo|rustc|rustdoc|edition-guide"
        r"|embedded-book|unstable-book)/",
        skip=r"/(first|second|2018)-edition/",
    ),
    Source("apache2-doc", "Apache-2.0", only=r"/en/"),
    Source("cmake-doc", "BSD-3-Clause", skip=r"/release/"),
    Source("llvm-16-doc", "Apache-2.0 with LLVM exception"),
    Source("clang-16-doc", "Apache-2.0 with LLVM exception", skip=r"DiagnosticsReference"),
    Source("nodejs-doc", "MIT", skip=r"/all\.html"),
    Source("python-sqlalchemy-doc", "MIT", skip=r"/changelog/changelog"),
    Source("python-scipy-doc", "BSD-3-Clause", skip=r"/release"),
    Source("python-pandas-doc", "BSD-3-Clause", skip=r"/(whatsnew|reference)/|cookbook"),
    Source("python-statsmodels-doc", "BSD-3-Clause", skip=r"/(generated|release)/"),
    Source("python-dask-doc", "BSD-3-Clause", skip=r"/generated/"),
    Source("python-xarray-doc", "Apache-2.0", skip=r"/generated/"),
    Source("sphinx-doc", "BSD-2-Clause", skip=r"/changes"),
    Source("python-kombu-doc", "BSD-3-Clause"),
    Source("python-flask-doc", "BSD-3-Clause", skip=r"/changes"),
    Source("python-werkzeug-doc", "BSD-3-Clause", skip=r"/changes"),
    Source("python-jinja2-doc", "BSD-3-Clause", skip=r"/changes"),
    Source("python-pytest-doc", "MIT", skip=r"/(announce|changelog)"),
    Source("python-tornado-doc", "Apache-2.0", skip=r"/releases"),
    Source("python-aiohttp-doc", "Apache-2.0", skip=r"/changes"),
    Source("python-gevent-doc", "MIT", skip=r"/changelog"),
    Source("python-ipython-doc", "BSD-3-Clause", skip=r"/whatsnew/github"),
    Source("python-pil-doc", "HPND"),
    Source("python-h5py-doc", "BSD-3-Clause"),
    Source("python-cryptography-doc", "BSD-3-Clause or Apache-2.0", skip=r"/changelog"),
    Source("varnish-doc", "BSD-2-Clause"),
    Source("swift-doc", "Apache-2.0"),
    Source("nova-doc", "Apache-2.0"),
    Source("neutron-doc", "Apache-2.0"),
    Source("keystone-doc", "Apache-2.0"),
    Source("cinder-doc", "Apache-2.0", skip=r"/(drivers|configuration/tables)/"),
    Source("glance-doc", "Apache-2.0"),
    Source("heat-doc", "Apache-2.0", skip=r"/template_guide/"),
    Source("ironic-doc", "Apache-2.0"),
    Source("octavia-doc", "Apache-2.0"),
    Source("manila-doc", "Apache-2.0"),
    Source("designate-doc", "Apache-2.0"),
    Source("barbican-doc", "Apache-2.0"),
)
