//! Of which fleet a client is, and so which part of a cluster it uses where clients use a part each.
//!
//! Refuses to know which of the fleet it is.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use mesh_core::id::Workload;

use crate::config::NAME_LABELS;

/// A client's number in its fleet, with the fleet above it: those of others have other parts of a cluster, however few they are.
pub(crate) fn in_fleet(number: u32, workload: &Workload) -> u64 {
    let named = NAME_LABELS.iter().any(|label| workload.labels.contains_key(*label));
    // What no label names is called as its Pod, and each Pod is called otherwise.
    let name = if named { workload.name.as_str() } else { of_pod(&workload.name) };
    let fleet = BuildHasherDefault::<DefaultHasher>::default().hash_one((&workload.namespace, name));
    (fleet << 32) | u64::from(number)
}

/// What the Pods of one controller have in common: a StatefulSet's end in their ordinal, those of a ReplicaSet, a DaemonSet or a Job in five
/// letters of Kubernetes' own alphabet, with a ReplicaSet's hash or a Job's index before them.
fn of_pod(pod: &str) -> &str {
    const LETTERS: &str = "bcdfghjklmnpqrstvwxz2456789";
    // A number's digits, each as one of the same alphabet.
    const HASH: &str = "456789bcdf";
    let of = |alphabet: &'static str| move |text: &str| text.chars().all(|letter| alphabet.contains(letter));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
    let Some((rest, last)) = pod.rsplit_once('-') else { return pod };
    if last.len() == 5 && of(LETTERS)(last) {
        return match rest.rsplit_once('-') {
            Some((app, before)) if is_number(before) || (6..=10).contains(&before.len()) && of(HASH)(before) => app,
            _ => rest,
        };
    }
    if is_number(last) { rest } else { pod }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::{MeshConfig, Vars};

    struct Given(BTreeMap<&'static str, String>);

    impl Vars for Given {
        fn var(&self, name: &str) -> Option<String> {
            self.0.get(name).cloned()
        }
        fn names(&self) -> Vec<String> {
            Vec::new()
        }
    }

    fn place(pod: &str, more: &[(&'static str, &str)]) -> u64 {
        let all = [("MESH_CONTROL_PLANE", "none"), ("POD_NAME", pod)].into_iter().chain(more.iter().copied());
        let vars = Given(all.map(|(name, value)| (name, value.to_owned())).collect());
        let config = MeshConfig::from_vars(&vars).unwrap();
        in_fleet(config.client_number.unwrap(), &config.workload)
    }

    #[test]
    fn pods_of_one_controller_are_one_fleet_without_a_label_that_names_it() {
        // A StatefulSet's.
        let shop = [0, 1, 2, 12].map(|number| place(&format!("shop-{number}"), &[]));
        assert!(shop.iter().all(|place| place >> 32 == shop[0] >> 32), "{shop:x?}");
        assert_eq!(shop.map(|place| place as u32), [0, 1, 2, 12]);
        // Those of a Deployment that is being replaced, to whom somebody gave numbers.
        let web = ["web-5d4f8c7b9-x2bcd", "web-5d4f8c7b9-24689", "web-688bd6d55c-zxw4t"];
        let web = web.map(|pod| place(pod, &[("MESH_CLIENT_NUMBER", "3")]));
        assert!(web.iter().all(|place| *place == web[0]), "{web:x?}");
        assert_ne!(web[0] >> 32, shop[0] >> 32, "the control: another fleet");
        assert_ne!(place("shop-0", &[("POD_NAMESPACE", "other")]) >> 32, shop[0] >> 32);
        // Where a label has the name, that counts, whatever it ends in.
        let labelled = ["shop-1", "shop-2"].map(|app| place("x-0", &[("MESH_LABELS", format!("app={app}").leak())]));
        assert_ne!(labelled[0], labelled[1]);
    }

    #[test]
    fn the_name_of_a_pod_says_what_it_is_of() {
        for (pod, fleet) in [
            ("kafka-12", "kafka"),
            ("node-agent-zx4bw", "node-agent"),
            ("web-5d4f8c7b9-x2bcd", "web"),
            ("nightly-29411520-v8xkl", "nightly"),
            ("shop-cart", "shop-cart"),
            ("shop-checkout-v2", "shop-checkout-v2"),
            ("web", "web"),
            ("unknown", "unknown"),
        ] {
            assert_eq!(of_pod(pod), fleet, "{pod}");
        }
    }
}
