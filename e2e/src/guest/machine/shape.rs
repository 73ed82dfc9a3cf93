//! Arrangements worth a look each.

use super::build::Bridge::{Chipset, Conventional, Downstream, Ioh, PcieToPci, RootPort, Upstream};
use super::build::{Build, Bus};

/// Builds one arrangement.
type Shape = fn(&mut Build);

/// The arrangements by name.
pub(super) const SHAPES: [(&str, Shape); 45] = [
    ("root port with ACS", |b| {
        let mut link = root(b, RootPort);
        b.single_endpoint(&mut link);
    }),
    ("root port without full ACS", |b| {
        let mut link = root(b, RootPort);
        b.weaken(&link);
        b.single_endpoint(&mut link);
    }),
    ("root port of another model", |b| {
        let mut link = root(b, Ioh);
        b.single_endpoint(&mut link);
    }),
    ("empty root ports", |b| {
        let weak = root(b, RootPort);
        b.weaken(&weak);
        root(b, Ioh);
    }),
    ("root ports as functions of one device", |b| {
        let places = b.on_root(|b, bus| b.several(bus, &[0, 1, 2, 4, 7]));
        for (index, place) in places.into_iter().enumerate() {
            let mut link = b.on_root(|b, bus| b.bridge(bus, place, RootPort));
            if index % 2 == 1 {
                b.weaken(&link);
            }
            if index != 2 {
                b.single_endpoint(&mut link);
            }
        }
    }),
    ("multifunction endpoint", |b| {
        let mut link = root(b, RootPort);
        functions(b, &mut link, &[0, 1, 2, 3, 4, 5, 6, 7]);
    }),
    ("multifunction endpoint with gaps below a weak port", |b| {
        let mut link = root(b, RootPort);
        b.weaken(&link);
        functions(b, &mut link, &[0, 3, 6]);
    }),
    ("conventional function on a link", |b| {
        let mut link = root(b, RootPort);
        let at = b.single(&mut link);
        b.device(&link, at, "edu");
    }),
    ("switch", |b| {
        let mut inside = switch_on(b);
        for _ in 0..3 {
            let mut link = b.single_bridge(&mut inside, Downstream);
            b.single_endpoint(&mut link);
        }
    }),
    ("switch with weak ports and an empty one", |b| {
        let mut inside = switch_on(b);
        for number in 0..4 {
            let mut link = b.single_bridge(&mut inside, Downstream);
            if number % 2 == 0 {
                b.weaken(&link);
            }
            if number != 3 {
                b.single_endpoint(&mut link);
            }
        }
    }),
    ("switch below a weak root port", |b| {
        let mut link = root(b, RootPort);
        b.weaken(&link);
        let mut inside = b.single_bridge(&mut link, Upstream);
        for _ in 0..2 {
            let mut link = b.single_bridge(&mut inside, Downstream);
            functions(b, &mut link, &[0, 1]);
        }
    }),
    ("switch below a switch, weak in between", |b| {
        let mut inside = switch_on(b);
        let mut link = b.single_bridge(&mut inside, Downstream);
        b.weaken(&link);
        let mut second = b.single_bridge(&mut link, Upstream);
        for _ in 0..2 {
            let mut link = b.single_bridge(&mut second, Downstream);
            b.single_endpoint(&mut link);
        }
        let mut link = b.single_bridge(&mut inside, Downstream);
        b.single_endpoint(&mut link);
    }),
    ("downstream ports as functions of one device", |b| {
        let mut inside = switch_on(b);
        let places = b.several(&mut inside, &[0, 1, 2]);
        for (index, place) in places.into_iter().enumerate() {
            let mut link = b.bridge(&inside, place, Downstream);
            if index == 1 {
                b.weaken(&link);
            }
            b.single_endpoint(&mut link);
        }
    }),
    ("upstream port with a function beside it", |b| {
        let mut link = root(b, RootPort);
        let places = b.several(&mut link, &[0, 1]);
        for (index, place) in places.into_iter().enumerate() {
            if index == 0 {
                let mut inside = b.bridge(&link, place, Upstream);
                let mut link = b.single_bridge(&mut inside, Downstream);
                b.single_endpoint(&mut link);
            } else {
                b.endpoint(&link, place);
            }
        }
    }),
    ("endpoint inside a switch", |b| {
        let mut inside = switch_on(b);
        let mut link = b.single_bridge(&mut inside, Downstream);
        b.single_endpoint(&mut link);
        b.single_endpoint(&mut inside);
    }),
    ("PCIe-to-PCI bridge with two functions", |b| {
        let mut link = root(b, RootPort);
        let mut bus = b.single_bridge(&mut link, PcieToPci);
        b.single_endpoint(&mut bus);
        b.single_endpoint(&mut bus);
    }),
    ("PCIe-to-PCI bridge on the root bus", |b| {
        let mut bus = root(b, PcieToPci);
        b.single_endpoint(&mut bus);
        functions(b, &mut bus, &[0, 2]);
    }),
    ("PCIe-to-PCI bridge below a switch", |b| {
        let mut inside = switch_on(b);
        let mut link = b.single_bridge(&mut inside, Downstream);
        let mut bus = b.single_bridge(&mut link, PcieToPci);
        b.single_endpoint(&mut bus);
        let mut link = b.single_bridge(&mut inside, Downstream);
        b.single_endpoint(&mut link);
    }),
    ("conventional bridges in a chain", |b| {
        let mut bus = root(b, Conventional);
        b.single_endpoint(&mut bus);
        let mut second = b.single_bridge(&mut bus, Conventional);
        b.single_endpoint(&mut second);
        let mut third = b.single_bridge(&mut second, Conventional);
        b.single_endpoint(&mut third);
    }),
    ("conventional bridges below a PCIe-to-PCI bridge", |b| {
        let mut link = root(b, RootPort);
        let mut bus = b.single_bridge(&mut link, PcieToPci);
        let mut second = b.single_bridge(&mut bus, Conventional);
        b.single_endpoint(&mut second);
        b.single_endpoint(&mut second);
        let mut third = b.single_bridge(&mut bus, Chipset);
        b.single_endpoint(&mut third);
    }),
    ("chipset bridge on the root bus", |b| {
        let mut bus = root(b, Chipset);
        let mut second = b.single_bridge(&mut bus, Conventional);
        b.single_endpoint(&mut second);
        b.single_endpoint(&mut bus);
    }),
    ("PCIe-to-PCI bridge that hides its kind", |b| {
        let mut link = root(b, RootPort);
        let mut bus = b.single_bridge(&mut link, Chipset);
        b.single_endpoint(&mut bus);
        b.single_endpoint(&mut bus);
    }),
    ("bridge and endpoint as functions of one device", |b| {
        let mut link = root(b, RootPort);
        let places = b.several(&mut link, &[0, 1, 2]);
        for (index, place) in places.into_iter().enumerate() {
            if index == 1 {
                let mut bus = b.bridge(&link, place, PcieToPci);
                b.single_endpoint(&mut bus);
            } else {
                b.endpoint(&link, place);
            }
        }
    }),
    ("integrated endpoints", |b| {
        on_root_device(b, "virtio-rng-pci-non-transitional");
        on_root_device(b, "nvme,serial=x,use-intel-id=on");
        b.on_root(|b, bus| functions(b, bus, &[0, 1, 5]));
    }),
    ("integrated endpoints of Intel in one device", |b| {
        b.on_root(|b, bus| {
            for place in b.several(bus, &[0, 1, 2]) {
                b.device(bus, place, "nvme,serial=x,use-intel-id=on");
            }
        });
    }),
    ("conventional functions on the root bus", |b| {
        b.on_root(|b, bus| {
            let places = b.several(bus, &[0, 1, 2, 7]);
            for (place, model) in
                places
                    .into_iter()
                    .zip(["ich9-usb-uhci1", "ich9-usb-uhci2", "ich9-usb-uhci3", "ich9-usb-ehci1"])
            {
                b.device(bus, place, model);
            }
            bus.skip();
        });
        on_root_device(b, "edu");
    }),
    ("further root bus", |b| {
        let mut bus = b.expander(0xc0, "");
        let mut link = b.single_bridge(&mut bus, RootPort);
        b.single_endpoint(&mut link);
        let mut link = b.single_bridge(&mut bus, RootPort);
        b.weaken(&link);
        functions(b, &mut link, &[0, 1]);
        let mut second = b.single_bridge(&mut bus, PcieToPci);
        b.single_endpoint(&mut second);
    }),
    ("further root bus that no unit serves", |b| {
        let mut bus = b.expander(0xe0, ",bypass_iommu=on");
        let mut link = b.single_bridge(&mut bus, RootPort);
        b.single_endpoint(&mut link);
    }),
    ("virtual functions", |b| {
        let mut link = root(b, RootPort);
        b.object("nvme-subsys,id=subsystem");
        let at = b.single(&mut link);
        let vectors = "max_ioqpairs=10,msix_qsize=12,sriov_vq_flexible=6,sriov_vi_flexible=3,\
                       sriov_max_vq_per_vf=2,sriov_max_vi_per_vf=1";
        b.nvme_with_virtual_functions(
            &link,
            at,
            &format!("nvme,serial=x,subsys=subsystem,sriov_max_vfs=3,{vectors}"),
        );
    }),
    ("physical and virtual functions of a network card", |b| {
        let mut link = root(b, RootPort);
        let at = b.single(&mut link);
        b.device(&link, at, NETWORK_CARD);
    }),
    ("virtual functions below a weak switch port", |b| {
        let mut inside = switch_on(b);
        for number in 0..2 {
            let mut link = b.single_bridge(&mut inside, Downstream);
            if number == 0 {
                b.weaken(&link);
            }
            let at = b.single(&mut link);
            b.device(&link, at, NETWORK_CARD);
        }
    }),
    ("two ports of a network card that a quirk isolates", |b| {
        let mut link = root(b, RootPort);
        for place in b.several(&mut link, &[0, 1]) {
            b.device(&link, place, NETWORK_CARD);
        }
    }),
    ("network card beside another function", |b| {
        let mut link = root(b, RootPort);
        let places = b.several(&mut link, &[0, 1]);
        for (place, model) in places.into_iter().zip([NETWORK_CARD, "nvme,serial=x"]) {
            b.device(&link, place, model);
        }
    }),
    ("conventional functions beside express ones in a device", |b| {
        let mut link = root(b, RootPort);
        let places = b.several(&mut link, &[0, 1, 2, 3]);
        for (place, model) in places
            .into_iter()
            .zip(["qemu-xhci", "edu", "nvme,serial=x", "sdhci-pci"])
        {
            b.device(&link, place, model);
        }
    }),
    ("switch all of whose ports are weak", |b| {
        let mut inside = switch_on(b);
        for _ in 0..3 {
            let mut link = b.single_bridge(&mut inside, Downstream);
            b.weaken(&link);
            functions(b, &mut link, &[0, 1]);
        }
    }),
    ("switches four deep", |b| {
        let mut inside = switch_on(b);
        for depth in 0..3 {
            let mut link = b.single_bridge(&mut inside, Downstream);
            b.single_endpoint(&mut link);
            let mut link = b.single_bridge(&mut inside, Downstream);
            if depth == 1 {
                b.weaken(&link);
            }
            inside = b.single_bridge(&mut link, Upstream);
        }
        let mut link = b.single_bridge(&mut inside, Downstream);
        b.single_endpoint(&mut link);
    }),
    ("switch whose ports have numbers with gaps", |b| {
        let mut inside = switch_on(b);
        for _ in 0..3 {
            inside.skip();
            let mut link = b.single_bridge(&mut inside, Downstream);
            b.single_endpoint(&mut link);
        }
    }),
    ("empty switch", |b| {
        let mut inside = switch_on(b);
        for number in 0..3 {
            let link = b.single_bridge(&mut inside, Downstream);
            if number == 1 {
                b.weaken(&link);
            }
        }
    }),
    ("two PCIe-to-PCI bridges side by side", |b| {
        let mut link = root(b, RootPort);
        for place in b.several(&mut link, &[0, 1]) {
            let mut bus = b.bridge(&link, place, PcieToPci);
            b.single_endpoint(&mut bus);
            b.single_endpoint(&mut bus);
        }
    }),
    ("PCIe-to-PCI bridge below a weak port beside an endpoint", |b| {
        let mut inside = switch_on(b);
        for number in 0..2 {
            let mut link = b.single_bridge(&mut inside, Downstream);
            b.weaken(&link);
            if number == 0 {
                let mut bus = b.single_bridge(&mut link, PcieToPci);
                functions(b, &mut bus, &[0, 1]);
            } else {
                b.single_endpoint(&mut link);
            }
        }
    }),
    ("conventional bridges as functions of one device", |b| {
        let places = b.on_root(|b, bus| b.several(bus, &[0, 1, 3]));
        for (index, place) in places.into_iter().enumerate() {
            let mut bus = b.on_root(|b, bus| b.bridge(bus, place, Conventional));
            if index != 1 {
                b.single_endpoint(&mut bus);
            }
        }
    }),
    ("further root bus with a switch", |b| {
        let mut bus = b.expander(0xa0, "");
        let mut link = b.single_bridge(&mut bus, Ioh);
        let mut inside = b.single_bridge(&mut link, Upstream);
        for number in 0..2 {
            let mut link = b.single_bridge(&mut inside, Downstream);
            if number == 1 {
                b.weaken(&link);
            }
            functions(b, &mut link, &[0, 2]);
        }
    }),
    ("further root bus with conventional bridges", |b| {
        let mut bus = b.expander(0xb0, "");
        let mut first = b.single_bridge(&mut bus, Conventional);
        b.single_endpoint(&mut first);
        let mut second = b.single_bridge(&mut first, Conventional);
        b.single_endpoint(&mut second);
        let mut third = b.single_bridge(&mut bus, PcieToPci);
        b.single_endpoint(&mut third);
    }),
    ("integrated endpoints with one conventional function", |b| {
        b.on_root(|b, bus| {
            let places = b.several(bus, &[0, 1, 2]);
            for (place, model) in places.into_iter().zip(["qemu-xhci", "edu", "nvme,serial=x"]) {
                b.device(bus, place, model);
            }
        });
    }),
    ("many functions", |b| {
        let places = b.on_root(|b, bus| b.several(bus, &[0, 1, 2, 3, 4, 5, 6, 7]));
        for place in places {
            let mut link = b.on_root(|b, bus| b.bridge(bus, place, RootPort));
            functions(b, &mut link, &[0, 1, 2, 3, 4, 5, 6, 7]);
        }
        let mut bus = root(b, Conventional);
        for _ in 0..3 {
            functions(b, &mut bus, &[0, 1, 2, 3, 4, 5, 6, 7]);
        }
    }),
];

/// Intel's 82576, with seven virtual functions. Linux knows that its ports cannot reach each other.
const NETWORK_CARD: &str = "igb,romfile=";

/// A bridge on the root bus.
fn root(b: &mut Build, bridge: super::build::Bridge) -> Bus {
    b.on_root(|b, bus| b.single_bridge(bus, bridge))
}

fn on_root_device(b: &mut Build, model: &str) {
    b.on_root(|b, bus| {
        let at = b.single(bus);
        b.device(bus, at, model);
    });
}

/// The inside of a switch below a root port.
fn switch_on(b: &mut Build) -> Bus {
    let mut link = root(b, RootPort);
    b.single_bridge(&mut link, Upstream)
}

/// One device with endpoints at these functions.
fn functions(b: &mut Build, bus: &mut Bus, numbers: &[u8]) {
    for place in b.several(bus, numbers) {
        b.endpoint(bus, place);
    }
}
