//! Bulk data one way, as fast as it goes.

use std::time::Instant;

use super::steady::Steady;
use super::{FULL, Next, Work};
use crate::args::{BulkArgs, Direction};
use crate::connection::{Connection, Failure, Progress};
use crate::error::PerfError;
use crate::measure::Tally;
use crate::plan::ClientPlan;
use crate::report::{Report, Unit};

/// Bytes sealed and sent at once: sixteen full records, one `writev`.
const BLOCK: usize = 256 * 1024;

pub(super) fn run(args: &BulkArgs) -> Result<Report, PerfError> {
    let plan = ClientPlan::new(&args.client, args.connections, &FULL)?;
    let upload = args.direction == Direction::Upload;
    let steady = Steady {
        name: if upload { "bulk_upload" } else { "bulk_download" },
        unit: Unit::Megabyte,
        standing: true,
        units_max: None,
        bytes_max: args.bytes.map(|bytes| bytes as u64),
        // A download's origin would go on sending.
        close_in_order: upload,
        work: &|_| match args.direction {
            Direction::Download => Box::new(DownloadWork),
            Direction::Upload => Box::new(UploadWork {
                block: vec![0x5a; BLOCK],
            }),
        },
        prepare: &|_, _| Ok(()),
    };
    steady.run(&plan)
}

struct DownloadWork;

impl Work for DownloadWork {
    fn progress(
        &mut self,
        _connection: &mut Connection,
        progress: &Progress,
        _now: Instant,
        tally: &mut Tally,
    ) -> Result<Next, Failure> {
        tally.bytes(progress.received);
        // An origin with a bounded amount closes in order; the connection is then opened anew.
        Ok(if progress.peer_closed { Next::Close } else { Next::Wait })
    }

    fn finished(&mut self, _connection: &Connection, _tally: &mut Tally) {}
}

struct UploadWork {
    block: Vec<u8>,
}

impl Work for UploadWork {
    fn progress(
        &mut self,
        connection: &mut Connection,
        progress: &Progress,
        _now: Instant,
        tally: &mut Tally,
    ) -> Result<Next, Failure> {
        if progress.peer_closed {
            return Err(Failure::ClosedByPeer);
        }
        if !progress.writable {
            return Ok(Next::Wait);
        }
        connection.queue(&self.block)?;
        tally.bytes(self.block.len());
        Ok(Next::Again)
    }

    fn finished(&mut self, _connection: &Connection, _tally: &mut Tally) {}
}
