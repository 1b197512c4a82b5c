// Asynchronous work in groups that finish in order, as cp.async, bulk stores and wgmma have it.
#pragma once

#include <cstddef>
#include <deque>
#include <utility>

namespace emu {

template <class Work>
class Groups {
 public:
  void reset() { *this = Groups(); }
  void issue(Work&& work) { work_.push_back(std::move(work)); }
  void commit() { ends_.push_back(finished_ + work_.size()); }
  size_t issued() const { return finished_ + work_.size(); }
  size_t finished() const { return finished_; }  // pieces of work whose group has been waited for
  bool uncommitted() const { return issued() != (ends_.empty() ? finished_ : ends_.back()); }

  // Does all that is issued, ahead of any wait.
  template <class Do>
  void hurry(Do&& execute) {
    for (; done_ < issued(); ++done_) execute(work_[done_ - finished_]);
  }
  // Finishes all groups but the youngest `keep`.
  template <class Do>
  void wait(size_t keep, Do&& execute) {
    while (ends_.size() > keep) {
      for (; finished_ < ends_.front(); ++finished_) {
        if (done_ == finished_) {
          execute(work_.front());
          ++done_;
        }
        work_.pop_front();
      }
      ends_.pop_front();
    }
  }

 private:
  std::deque<Work> work_;    // that is not finished
  std::deque<size_t> ends_;  // of the groups, counted from the first piece of work of all
  size_t done_ = 0, finished_ = 0;
};

}  // namespace emu
