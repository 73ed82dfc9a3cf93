//! Invalidation: what can be asked for, and the two ways to ask.

use arbitrary_int::{u5, u6};
use iommu_types::omission::{Step, kept};
use iommu_types::{DomainId, Iova, Pasid, Registers, SourceId};
use vtd_spec::descriptor::{
    ContextCacheInvalidation, DeviceTlbInvalidation, InterruptEntryInvalidation, IotlbInvalidation,
    PasidCacheInvalidation, PasidDeviceTlbInvalidation, PasidIotlbInvalidation,
};
use vtd_spec::encoding::{
    ContextGranularity, InterruptGranularity, IotlbGranularity, PasidCacheGranularity, PasidIotlbGranularity,
};
use vtd_spec::register::{ContextCommand, InvalidateAddress, IotlbInvalidate, offset};

use crate::error::HardwareError;
use crate::options::DeviceTlb;
use crate::pages::Block;
use crate::queue::{MAX_BATCH, Queue, QueueError, Words};
use crate::shared::{Host, Shared};
use crate::wait::poll;

/// How often a batch is submitted again after a device-TLB invalidation that was in flight, its own or
/// another's, timed out and took the batch's wait with it.
const MAX_RETRIES: u32 = 2;

/// One thing that a unit has to forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Invalidation {
    ContextGlobal,
    ContextDomain(DomainId),
    ContextDevice {
        source: SourceId,
        domain: DomainId,
    },
    IotlbGlobal,
    IotlbDomain(DomainId),
    IotlbPages {
        domain: DomainId,
        block: Block,
        leaf_only: bool,
    },
    PasidCacheGlobal,
    PasidCacheDomain(DomainId),
    PasidCacheEntry {
        domain: DomainId,
        pasid: Pasid,
    },
    /// Pages of a first-stage or nested domain.
    PasidIotlbPages {
        domain: DomainId,
        pasid: Pasid,
        block: Block,
        leaf_only: bool,
    },
    /// Everything of such a domain.
    PasidIotlbAll {
        domain: DomainId,
        pasid: Pasid,
    },
    /// Pages in the device-TLB of a function; `None` is everything. Under one PASID, or of requests without.
    DeviceTlb {
        source: SourceId,
        pasid: Option<Pasid>,
        function: DeviceTlb,
        block: Option<Block>,
    },
    InterruptsGlobal,
    Interrupts {
        first: u16,
        mask: u8,
    },
}

impl Invalidation {
    /// The descriptor (`VT-d §6.5.2.1` to `§6.5.2.8`).
    fn descriptor<R, P>(self, shared: &Shared<R, P>) -> Words {
        let context = ContextCacheInvalidation::DEFAULT;
        let iotlb = IotlbInvalidation::DEFAULT
            .with_dr(shared.capabilities.cap.drd())
            .with_dw(shared.capabilities.cap.dwd());
        let interrupt = InterruptEntryInvalidation::DEFAULT;
        let pasid_cache = PasidCacheInvalidation::DEFAULT;
        let pasid_iotlb = PasidIotlbInvalidation::DEFAULT;
        match self {
            Self::PasidCacheGlobal => pasid_cache.with_g(PasidCacheGranularity::Global).to_words_256(),
            Self::PasidCacheDomain(domain) => pasid_cache
                .with_g(PasidCacheGranularity::Domain)
                .with_domain(domain)
                .to_words_256(),
            Self::PasidCacheEntry { domain, pasid } => pasid_cache
                .with_g(PasidCacheGranularity::Pasid)
                .with_domain(domain)
                .with_pasid(pasid)
                .to_words_256(),
            Self::PasidIotlbPages {
                domain,
                pasid,
                block,
                leaf_only,
            } => pasid_iotlb
                .with_g(PasidIotlbGranularity::Page)
                .with_pasid(pasid)
                .with_domain(domain)
                .with_address(block.address)
                .with_am(u6::extract_u8(block.mask, 0))
                .with_ih(leaf_only)
                .to_words_256(),
            Self::PasidIotlbAll { domain, pasid } => pasid_iotlb
                .with_g(PasidIotlbGranularity::Pasid)
                .with_pasid(pasid)
                .with_domain(domain)
                .to_words_256(),
            Self::ContextGlobal => context.with_g(ContextGranularity::Global).to_words_256(),
            Self::ContextDomain(domain) => context
                .with_g(ContextGranularity::Domain)
                .with_domain(domain)
                .to_words_256(),
            Self::ContextDevice { source, domain } => context
                .with_g(ContextGranularity::Device)
                .with_source(source)
                .with_domain(domain)
                .to_words_256(),
            Self::IotlbGlobal => iotlb.with_g(IotlbGranularity::Global).to_words_256(),
            Self::IotlbDomain(domain) => iotlb
                .with_g(IotlbGranularity::Domain)
                .with_domain(domain)
                .to_words_256(),
            Self::IotlbPages {
                domain,
                block,
                leaf_only,
            } => iotlb
                .with_g(IotlbGranularity::Page)
                .with_domain(domain)
                .with_address(block.address)
                .with_am(u6::extract_u8(block.mask, 0))
                .with_ih(leaf_only)
                .to_words_256(),
            Self::DeviceTlb {
                source,
                pasid,
                function,
                block,
            } => device_tlb(source, pasid, function, block, shared.capabilities.ecap.dit()),
            Self::InterruptsGlobal => interrupt.with_g(InterruptGranularity::Global).to_words_256(),
            Self::Interrupts { first, mask } => interrupt
                .with_g(InterruptGranularity::Index)
                .with_iidx(first)
                .with_im(u5::extract_u8(mask, 0))
                .to_words_256(),
        }
    }
}

/// `VT-d §6.5.2.5`, `§6.5.2.6`; `throttled` is `ECAP_REG.DIT`.
fn device_tlb(
    source: SourceId,
    pasid: Option<Pasid>,
    function: DeviceTlb,
    block: Option<Block>,
    throttled: bool,
) -> Words {
    // 0 stands for a depth of 32 and more; PFSID is reserved without throttling.
    let depth = if function.queue_depth < 32 {
        function.queue_depth
    } else {
        0
    };
    let depth = u5::extract_u8(depth, 0);
    let physical = function.physical_function.unwrap_or(source);
    let physical = if throttled || !kept(Step::ThrottleOffered) {
        physical
    } else {
        SourceId::from_raw(0)
    };
    let (address, order) = block.map_or((Iova::ZERO, u8::MAX), |block| (block.address, block.mask));
    match pasid {
        None => DeviceTlbInvalidation::DEFAULT
            .with_source(source)
            .with_physical_function(physical)
            .with_mip(depth)
            .with_range(address, order)
            .to_words_256(),
        Some(pasid) => PasidDeviceTlbInvalidation::DEFAULT
            .with_source(source)
            .with_pasid(pasid)
            .with_physical_function(physical)
            .with_mip(depth)
            .with_range(address, order)
            .to_words_256(),
    }
}

/// How a unit is told to forget.
#[derive(Debug)]
pub(crate) enum Invalidator {
    /// By queue: every unit since about 2008 has one.
    Queue(Queue),
    /// By registers, one command at a time: only for units without a queue. While a queue is enabled the
    /// registers must not be used (`VT-d §6.5.1`).
    Registers,
}

impl Invalidator {
    /// Waits for the confirmation of nothing: a lone wait descriptor. The registers need no such thing.
    pub(crate) fn confirm<R: Registers, P: Host>(&self, shared: &Shared<R, P>) -> Result<(), HardwareError> {
        match self {
            Self::Queue(queue) => queued(queue, shared, &[]),
            Self::Registers => Ok(()),
        }
    }

    /// Carries `batch` out in order and waits for its confirmation.
    pub(crate) fn run<R: Registers, P: Host>(
        &self,
        shared: &Shared<R, P>,
        batch: &[Invalidation],
    ) -> Result<(), HardwareError> {
        match self {
            Self::Queue(queue) => {
                // On the stack: a strict unmap comes through here, and needs no heap.
                batch.chunks(MAX_BATCH).try_for_each(|chunk| {
                    let mut words: [Words; MAX_BATCH] = [[0; 4]; MAX_BATCH];
                    for (slot, one) in words.iter_mut().zip(chunk) {
                        *slot = one.descriptor(shared);
                    }
                    queued(queue, shared, words.get(..chunk.len()).unwrap_or(&words))
                })
            }
            Self::Registers => batch.iter().try_for_each(|one| by_register(shared, *one)),
        }
    }
}

fn queued<R: Registers, P: Host>(queue: &Queue, shared: &Shared<R, P>, batch: &[Words]) -> Result<(), HardwareError> {
    let limit = shared.options.timeouts.invalidation_ns;
    let mut result = Ok(());
    for _ in 0..=MAX_RETRIES {
        let ticket = queue.submit(&shared.registers, &shared.host, batch, limit)?;
        result = queue.wait(&shared.registers, &shared.host, &ticket, limit);
        if !matches!(result, Err(QueueError::Aborted { .. })) {
            break;
        }
    }
    Ok(result?)
}

/// `VT-d §6.5.1`: context command, invalidate address and IOTLB registers.
fn by_register<R: Registers, P: Host>(shared: &Shared<R, P>, what: Invalidation) -> Result<(), HardwareError> {
    let context = ContextCommand::DEFAULT.with_icc(true);
    let iotlb = IotlbInvalidate::DEFAULT
        .with_ivt(true)
        .with_dr(shared.capabilities.cap.drd())
        .with_dw(shared.capabilities.cap.dwd());
    match what {
        Invalidation::ContextGlobal => context_command(shared, context.with_cirg(ContextGranularity::Global)),
        Invalidation::ContextDomain(domain) => context_command(
            shared,
            context.with_cirg(ContextGranularity::Domain).with_domain(domain),
        ),
        Invalidation::ContextDevice { source, domain } => {
            let command = context
                .with_cirg(ContextGranularity::Device)
                .with_source(source)
                .with_domain(domain);
            context_command(shared, command)
        }
        Invalidation::IotlbGlobal => iotlb_command(shared, None, iotlb.with_iirg(IotlbGranularity::Global)),
        Invalidation::IotlbDomain(domain) => iotlb_command(
            shared,
            None,
            iotlb.with_iirg(IotlbGranularity::Domain).with_domain(domain),
        ),
        Invalidation::IotlbPages {
            domain,
            block,
            leaf_only,
        } => {
            let address = InvalidateAddress::DEFAULT
                .with_address(block.address)
                .with_am(u6::extract_u8(block.mask, 0))
                .with_ih(leaf_only);
            iotlb_command(
                shared,
                Some(address),
                iotlb.with_iirg(IotlbGranularity::Page).with_domain(domain),
            )
        }
        // There is no register form: neither interrupt remapping nor scalable mode is enabled on a unit without
        // a queue.
        Invalidation::PasidCacheGlobal
        | Invalidation::PasidCacheDomain(_)
        | Invalidation::PasidIotlbPages { .. }
        | Invalidation::PasidCacheEntry { .. }
        | Invalidation::PasidIotlbAll { .. }
        | Invalidation::DeviceTlb { .. }
        | Invalidation::InterruptsGlobal
        | Invalidation::Interrupts { .. } => Err(HardwareError::InvalidationIgnored { answer: 0 }),
    }
}

fn context_command<R: Registers, P: Host>(shared: &Shared<R, P>, command: ContextCommand) -> Result<(), HardwareError> {
    // One command at a time for the whole unit (VT-d §11.4.4.1).
    let _one_at_a_time = shared.command.lock();
    let answer = register_command(shared, offset::CCMD, command.raw_value(), |raw| {
        !ContextCommand::new_with_raw_value(raw).icc()
    })?;
    let done = ContextCommand::new_with_raw_value(answer).caig();
    covers(done as u8, command.cirg() as u8, answer)
}

fn iotlb_command<R: Registers, P: Host>(
    shared: &Shared<R, P>,
    address: Option<InvalidateAddress>,
    command: IotlbInvalidate,
) -> Result<(), HardwareError> {
    let _one_at_a_time = shared.command.lock();
    let ecap = shared.capabilities.ecap;
    if let Some(address) = address {
        shared
            .registers
            .write64(ecap.invalidate_address_offset(), address.raw_value());
    }
    let answer = register_command(shared, ecap.iotlb_offset(), command.raw_value(), |raw| {
        !IotlbInvalidate::new_with_raw_value(raw).ivt()
    })?;
    let done = IotlbInvalidate::new_with_raw_value(answer).iaig();
    covers(done as u8, command.iirg() as u8, answer)
}

/// Writes a command and waits until its start bit clears; gives the register.
fn register_command<R: Registers, P: Host>(
    shared: &Shared<R, P>,
    at: u32,
    command: u64,
    done: impl Fn(u64) -> bool,
) -> Result<u64, HardwareError> {
    shared.registers.write64(at, command);
    poll(&shared.host, shared.options.timeouts.invalidation_ns, || {
        match shared.registers.read64(at) {
            u64::MAX => Some(Err(HardwareError::Gone { offset: at })),
            raw => done(raw).then_some(Ok(raw)),
        }
    })
    .unwrap_or_else(|waited_ns| Err(HardwareError::InvalidationTimeout { waited_ns }))
}

/// Whether the granularity that the unit applied includes the one asked for: the codes go from wide to narrow,
/// and 0 means that nothing was done.
fn covers(done: u8, asked: u8, answer: u64) -> Result<(), HardwareError> {
    if done != 0 && done <= asked {
        Ok(())
    } else {
        Err(HardwareError::InvalidationIgnored { answer })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wider_invalidation_than_asked_is_enough_and_a_narrower_or_none_is_not() {
        assert_eq!(covers(1, 3, 0), Ok(()));
        assert_eq!(covers(3, 3, 0), Ok(()));
        assert!(covers(3, 2, 0).is_err());
        assert!(covers(0, 1, 0).is_err());
    }
}
