//! nginx and HAProxy, each started with a configuration of the test's own.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use tempfile::TempDir;

use super::{Program, eventually};

/// A server of other people's that runs. Is killed when it goes out of scope.
pub(crate) struct Balancer {
    /// For its output.
    pub(crate) program: Program,
    _folder: TempDir,
}

impl Balancer {
    /// nginx with these blocks (`http {…}`, `stream {…}`), as soon as it listens at `address`.
    #[track_caller]
    pub(crate) fn nginx(blocks: &str, address: SocketAddr) -> Balancer {
        let folder = TempDir::new().unwrap();
        let path = folder.path().display();
        let stream_module = [
            "/usr/lib/nginx/modules",
            "/usr/lib64/nginx/modules",
            "/usr/share/nginx/modules",
        ]
        .iter()
        .map(|folder| Path::new(folder).join("ngx_stream_module.so"))
        .find(|file| file.exists());
        let load = match stream_module {
            Some(file) if blocks.contains("stream {") => format!("load_module {};", file.display()),
            Some(_) | None => String::new(),
        };
        // As root nginx would give its worker to a user who may not enter the folder.
        let config = format!(
            "{load}\ndaemon off;\nmaster_process off;\npid {path}/pid;\nerror_log stderr warn;\n\
             events {{ worker_connections 256; }}\n{blocks}\n"
        );
        // Where it would otherwise make its folders only root may.
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|kind| format!("{kind}_temp_path {path}/{kind};\n"))
            .collect();
        let config = config.replace("http {", &format!("http {{\naccess_log off;\n{temporary}"));
        let file = folder.path().join("nginx.conf");
        std::fs::write(&file, config).unwrap();
        let (prefix, file) = (path.to_string(), file.display().to_string());
        let program = Program::start("nginx", &["-p", &prefix, "-e", "stderr", "-c", &file]);
        Balancer::started(program, folder, address)
    }

    /// HAProxy with these sections, as soon as it listens at `address`.
    #[track_caller]
    pub(crate) fn haproxy(sections: &str, address: SocketAddr) -> Balancer {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("haproxy.cfg");
        let config = format!(
            "global\n  maxconn 256\ndefaults\n  timeout connect 20s\n  timeout client 20s\n  timeout server 20s\n{sections}\n"
        );
        std::fs::write(&file, config).unwrap();
        let program = Program::start("haproxy", &["-db", "-f", file.to_str().unwrap()]);
        Balancer::started(program, folder, address)
    }

    #[track_caller]
    fn started(program: Program, folder: TempDir, address: SocketAddr) -> Balancer {
        eventually("the server to listen", || {
            TcpStream::connect(address).ok().or_else(|| {
                assert!(program.is_running(), "it has ended: {}", program.text());
                None
            })
        });
        Balancer {
            program,
            _folder: folder,
        }
    }
}
