"""The certificates of a comparison: of the servers, and of clients that show one."""

import subprocess

CLIENT_KEYS = ("p256", "rsa", "ed25519")
MAKE_KEY = {
    "p256": ("ecparam", "-name", "prime256v1", "-genkey", "-noout"),
    "rsa": ("genrsa", "2048"),
    "ed25519": ("genpkey", "-algorithm", "ed25519"),
}


def make_certificates(folder):
    """ca.pem; ecdsa and rsa as .pem, .key and .both.pem; for each kind of client's key the root that the servers know
    (clients-ca-KIND.pem) and what the client shows: client-KIND.chain.pem, with an intermediate, and client-KIND.key."""

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, text=True)

    def key(kind, name):
        command, *options = MAKE_KEY[kind]
        # genrsa wants the number of bits last.
        openssl(command, "-out", f"{name}.key", *options)

    def root(kind, name, subject):
        key(kind, name)
        openssl("req", "-x509", "-new", "-key", f"{name}.key", "-subj", f"/CN={subject}", "-days", "2", "-out", f"{name}.pem")

    def issue(kind, name, subject, issuer, extension):
        key(kind, name)
        openssl("req", "-new", "-key", f"{name}.key", "-subj", f"/CN={subject}", "-out", f"{name}.csr")
        (folder / f"{name}.ext").write_text(extension + "\n", encoding="utf-8")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", f"{issuer}.pem", "-CAkey", f"{issuer}.key", "-CAcreateserial",
                "-days", "2", "-out", f"{name}.pem", "-extfile", f"{name}.ext")

    def join(file, *parts):
        (folder / file).write_text("".join((folder / part).read_text(encoding="utf-8") for part in parts), encoding="utf-8")

    root("p256", "ca", "compare CA")
    for name, kind in (("ecdsa", "p256"), ("rsa", "rsa")):
        issue(kind, name, "localhost", "ca", "subjectAltName=DNS:localhost")
        join(f"{name}.both.pem", f"{name}.pem", f"{name}.key")
    for kind in CLIENT_KEYS:
        root(kind, f"clients-ca-{kind}", f"compare clients {kind}")
        issue(kind, f"intermediate-{kind}", f"compare intermediate {kind}", f"clients-ca-{kind}",
              "basicConstraints=critical,CA:TRUE")
        issue(kind, f"client-{kind}", f"compare client {kind}", f"intermediate-{kind}", "extendedKeyUsage=clientAuth")
        join(f"client-{kind}.chain.pem", f"client-{kind}.pem", f"intermediate-{kind}.pem")
