//! What operators do once a change of the membership is confirmed: nodes that were removed are stopped for good, and
//! any voter may be lost.

use super::mutants::Mutant;
use super::world::World;

impl World {
    /// After a step of a host: whether it leads, and the changes that it has applied are confirmed.
    pub fn note_confirmed(&mut self, id: u64) {
        let trusts_leader = self.is(Mutant::StopBeforeConfirmed);
        let host = self.host(id);
        let Some(engine) = &host.engine else {
            return;
        };
        let is_confirmed = host.leads()
            && !engine.membership().is_joint()
            && (trusts_leader || !engine.has_unconfirmed_change());
        let handed = host.handed;
        if !is_confirmed || handed <= self.confirmed {
            return;
        }
        let before = std::mem::replace(&mut self.confirmed, handed);
        let change = self.oracle.last_change();
        if before < change && change <= self.confirmed && !self.faults_ended {
            self.change_confirmed(id);
        }
    }

    /// Those who left are stopped for good, and the leader may be lost in that moment, with all that it has sent.
    fn change_confirmed(&mut self, leader: u64) {
        for id in self.oracle.left_until(self.confirmed) {
            if self.hosts.contains_key(&id) && !self.host(id).gone && self.chance(2) {
                self.note(|| format!("{id} is stopped for good"));
                self.crash(id);
                self.host_mut(id).gone = true;
                self.reached.retired += 1;
            }
        }
        if self.chance(3) {
            if self.chance(2) {
                self.lose_messages_of(leader);
            }
            self.lose_log(leader);
        }
    }
}
