//! A server and clients of it over real sockets.

mod client;
mod hostile;
mod unit;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use iommu_devices::{DmaEngine, DmaEngineOptions};
use iommu_serve::protocol::Refusal;
use iommu_serve::{Machine, Notices, Report, Server};
use vtd_model::{Fault, Finding, UnitConfig, UnitConfigBuilder};

/// What a server said.
#[derive(Debug, Default)]
pub struct Said {
    pub faults: Mutex<Vec<String>>,
    pub findings: Mutex<Vec<(String, Vec<String>)>>,
    pub refusals: Mutex<Vec<String>>,
    pub ended: Mutex<Vec<Option<String>>>,
}

struct Ear(Arc<Said>);

impl Report for Ear {
    fn finding(&mut self, finding: &Finding, _: &str, trace: &[String]) {
        let entry = (finding.rule.name().to_owned(), trace.to_vec());
        self.0.findings.lock().unwrap().push(entry);
    }
    fn fault(&mut self, fault: &Fault) {
        self.0.faults.lock().unwrap().push(fault.to_string());
    }
}

impl Notices for Said {
    fn connected(&self, _: &str) {}
    fn ended(&self, _: &str, why: Option<&str>) {
        self.ended.lock().unwrap().push(why.map(str::to_owned));
    }
    fn refused(&self, _: &str, refusal: &Refusal) {
        self.refusals.lock().unwrap().push(refusal.to_string());
    }
}

/// A served unit with a DMA engine behind it and one beside it, in a directory of its own.
pub struct Rig {
    server: Option<Server>,
    directory: PathBuf,
    pub said: Arc<Said>,
}

impl Rig {
    pub fn new() -> Self {
        Self::with(UnitConfig::builder())
    }

    pub fn with(config: UnitConfigBuilder) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let directory = std::env::temp_dir().join(format!(
            "iommu-serve-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        ));
        std::fs::create_dir_all(&directory).unwrap();
        let config = config
            .interrupt_remapping(false)
            .extended_interrupts(false)
            .build()
            .unwrap();
        let said = Arc::new(Said::default());
        let engine = || {
            let options = DmaEngineOptions::default();
            Box::new(DmaEngine::new(DmaEngine::describe(options).build().unwrap(), options).unwrap())
        };
        let server = Machine::new(config, "00:06.0".parse().unwrap(), Box::new(Ear(Arc::clone(&said))))
            .unwrap()
            .with("engine", "00:07.0".parse().unwrap(), engine())
            .unwrap()
            .with_bypass("beside", "00:08.0".parse().unwrap(), engine())
            .unwrap()
            .serve(&directory, Arc::clone(&said) as Arc<_>)
            .unwrap();
        Self {
            server: Some(server),
            directory,
            said,
        }
    }

    pub fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    pub fn socket(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.sock"))
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        drop(self.server.take());
        // Empty: the server removed its sockets.
        std::fs::remove_dir(&self.directory).unwrap();
    }
}
