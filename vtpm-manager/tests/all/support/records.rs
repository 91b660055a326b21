//! What the audit log tells of each vRoT, beside what the store has.

use std::collections::BTreeMap;

use anyhow::Result;

use super::Host;

/// vRoTs that are otherwise than the last line about them says.
pub(crate) fn differences(host: &Host) -> Result<Vec<String>> {
    let mut told = BTreeMap::new();
    for line in host.audit()? {
        let state = match line["event"].as_str().unwrap_or_default() {
            "vrot-created" => "assigned",
            "vrot-started" | "vrot-resumed" => "running",
            "vrot-suspended" => "suspended",
            "vrot-stopped" | "backend-ended" => "stopped",
            "vrot-deleted" | "vrot-discarded" => "absent",
            "vrot-found" => line["state"].as_str().unwrap_or_default(),
            _ => continue,
        };
        told.insert(line["vrot"].to_string(), state.to_owned());
    }
    told.retain(|_, state| state != "absent");
    let mut there = BTreeMap::new();
    for view in host.json(["list"])?["vrots"]
        .as_array()
        .into_iter()
        .flatten()
    {
        let state = view["state"].as_str().unwrap_or_default().to_owned();
        there.insert(view["vrot"].to_string(), state);
    }
    let numbers = told.keys().chain(there.keys());
    let differing = numbers.filter(|number| told.get(*number) != there.get(*number));
    Ok(differing
        .map(|number| format!("{number}: {:?}, {:?}", told.get(number), there.get(number)))
        .collect())
}
