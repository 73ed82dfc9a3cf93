//! What each command says about one machine of our own making, kept as text.

mod fixture;

use fixture::Fixture;

/// A test that compares what a command says with what is kept.
macro_rules! kept {
    ($($name:ident: $command:expr;)*) => {
        $(
            #[test]
            fn $name() {
                let machine = Fixture::new(concat!("text-", stringify!($name)));
                insta::assert_snapshot!(stringify!($name), machine.said(&$command, &[]));
            }
        )*
    };
}

kept! {
    bare_call: [];
    doctor: ["doctor"];
    groups: ["groups"];
    groups_of_one_device: ["groups", "-s", "04:00.0"];
    groups_of_one_vendor_in_one_class: ["groups", "-d", "1234::0200", "--format", "shell"];
    groups_as_a_tree: ["groups", "--tree"];
    groups_as_a_tree_of_one_device: ["groups", "--tree", "-s", "05:01.0"];
    groups_in_the_shell_loops_format: ["groups", "--format", "shell"];
    groups_by_strict_rules: ["groups", "--model", "strict"];
    explain_one: ["explain", "01:00.0"];
    explain_behind_a_conventional_bridge: ["explain", "05:01.0"];
    explain_two_together: ["explain", "01:00.0", "01:00.1"];
    explain_two_apart: ["explain", "eth0", "nvme0n1"];
    check_yes: ["check", "-s", "01:00.0", "01:00.1"];
    check_root_disk: ["check", "nvme0n1"];
    check_reserved_region: ["check", "04:00.0", "--mem", "4G"];
    plan: ["plan", "01:00.0"];
    plan_as_driverctl_script: ["plan", "01:00.0", "--format", "driverctl"];
    plan_as_virsh_script: ["plan", "01:00.0", "--format", "virsh"];
    plan_as_xml: ["plan", "01:00.0", "--format", "xml"];
    plan_as_sysfs_script: ["plan", "01:00.0", "01:00.1", "--format", "sysfs"];
    plan_as_sysfs_script_back: ["plan", "01:00.0", "--format", "sysfs", "--undo"];
    plan_refused: ["plan", "nvme0n1", "--format", "sysfs"];
    plan_refused_in_text: ["plan", "nvme0n1"];
    faults: ["faults"];
    faults_of_one_device: ["faults", "-s", "04:00.1"];
    caps: ["caps"];
    dmar_show: ["dmar", "show"];
    dmar_lint: ["dmar", "lint"];
}

#[test]
fn help_of_the_tool() {
    let output = fixture::iommu(&["--help"]);
    insta::assert_snapshot!("help", String::from_utf8(output.stdout).expect("UTF-8"));
}

#[test]
fn help_of_a_command() {
    let output = fixture::iommu(&["plan", "--help"]);
    insta::assert_snapshot!("help_of_plan", String::from_utf8(output.stdout).expect("UTF-8"));
}
