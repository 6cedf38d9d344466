"""Certificates of an authority of our own, as files."""

from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Certificates:
    """File names; a client's files are `client("NAME")`."""

    folder: Path
    ca: str
    server: str
    server_key: str

    def client(self, name: str) -> tuple[str, str]:
        return str(self.folder / f"{name}.pem"), str(self.folder / f"{name}.key")


def issue(folder: Path) -> Certificates:
    """Write an authority, a server for 127.0.0.1, four clients and one of another authority."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    server = authority.issue_cert("127.0.0.1", "localhost")
    _write(server, folder, "server")
    for name in ("node-1", "node-2", "gw-1", "gw-2"):
        _write(authority.issue_cert(f"{name}.test", common_name=name), folder, name)
    _write(trustme.CA().issue_cert("stranger.test", common_name="node-1"), folder, "stranger")
    return Certificates(
        folder, str(folder / "ca.pem"), str(folder / "server.pem"), str(folder / "server.key")
    )


def _write(issued: trustme.LeafCert, folder: Path, name: str) -> None:
    issued.private_key_pem.write_to_path(str(folder / f"{name}.key"))
    for blob in issued.cert_chain_pems:
        blob.write_to_path(str(folder / f"{name}.pem"), append=True)
